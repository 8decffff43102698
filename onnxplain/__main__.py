"""`python -m onnxplain`."""

from onnxplain.cli.main import main

main()
