"""`python -m labs`. The doctor is started before anything that may not be installed is imported."""

import sys

if __name__ == "__main__":
    try:
        from nano_qwen3_serving.observe.terminal import prepare_streams

        prepare_streams()
    except (ImportError, SyntaxError):
        pass  # not installed, or a Python too old for it: the doctor says so
    if sys.argv[1:] == ["doctor"]:
        from labs.harness.doctor import main
    else:
        if sys.version_info < (3, 11):
            sys.exit("This course needs Python 3.11 to 3.13. See: python -m labs doctor")
        try:
            from labs.harness.cli.app import main
        except ImportError as error:
            sys.exit(f"{error}. What to do about it: python -m labs doctor")
    sys.exit(main())
