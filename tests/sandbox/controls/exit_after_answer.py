# family: exit
# tries: sys.exit(0) after its answer
# prints: 7
import sys


def main():
    print(7)
    sys.exit(0)


if __name__ == "__main__":
    main()
