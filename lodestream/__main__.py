"""``python -m lodestream``: the same as the ``lodestream`` command."""

from lodestream.pipeline.cli.app import main

if __name__ == "__main__":
    main()
