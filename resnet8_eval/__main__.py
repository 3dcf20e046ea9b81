"""``python -m resnet8_eval``."""

from resnet8_eval.cli import main

main()
