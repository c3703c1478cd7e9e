# family: patching
# tries: to catch what it prints, then print it
# prints: [caught]
import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()) as text:
    print("caught", end="")
print(f"[{text.getvalue()}]")
