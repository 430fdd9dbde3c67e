"""`python -m llava_tools`: the same as the `llava-tools` command."""

from llava_tools.cli import main

if __name__ == "__main__":
    main()
