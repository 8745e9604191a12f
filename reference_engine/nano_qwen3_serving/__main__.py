from nano_qwen3_serving.observe.terminal import prepare_streams

if __name__ == "__main__":
    prepare_streams()
    from nano_qwen3_serving.cli import main

    main()
