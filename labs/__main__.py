"""`python -m labs`. The doctor is started before anything that may not be installed is imported."""

import sys

if __name__ == "__main__":
    if sys.argv[1:] == ["doctor"]:
        from labs.harness.doctor import main
    else:
        if sys.version_info < (3, 11):
            sys.exit("This course needs Python 3.11 to 3.13. See: python -m labs doctor")
        try:
            from labs.harness.cli import main
        except ImportError as error:
            sys.exit(f"{error}. What to do about it: python -m labs doctor")
    sys.exit(main())
