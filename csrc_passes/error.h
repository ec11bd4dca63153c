#pragma once
// The two kinds of error that leave the extension. Bindings turn both into
// jitquant.JitQuantError (or its subclass), so that Python sees one family.

#include <exception>
#include <stdexcept>
#include <string>

namespace jitquant {

// A mistake in what the user gave: the text says what was found, where, and what to do.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A defect of jitquant or of torch: the text names the pass.
class PassError : public std::runtime_error {
 public:
  PassError(const std::string& pass, const std::string& what)
      : std::runtime_error(
            "pass " + pass + " failed: " + what +
            "\nThis is a defect of jitquant; your model was not changed. Please report it.") {}
};

// What an error of torch says first; the rest is where it was raised.
inline std::string firstLine(const std::exception& error) {
  std::string text = error.what();
  text.erase(0, text.find_first_not_of("\n "));
  return text.substr(0, text.find('\n'));
}

}  // namespace jitquant
