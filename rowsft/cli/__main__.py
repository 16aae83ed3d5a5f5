"""python -m rowsft.cli"""

from rowsft.cli.main import main

if __name__ == "__main__":
    main()
