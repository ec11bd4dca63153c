"""Tests check every graph after every pass; users' runs do it once, at the end."""

import os

os.environ["JITQUANT_CHECK_EACH_PASS"] = "1"
