"""`python -m grading`."""

from nano_qwen3_serving.observe.terminal import prepare_streams

if __name__ == "__main__":
    prepare_streams()
    from grading.cli.app import main

    main()
