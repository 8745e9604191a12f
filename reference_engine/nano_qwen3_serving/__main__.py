from nano_qwen3_serving.cli import main

main()
