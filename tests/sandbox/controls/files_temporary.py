# family: files
# tries: files in its own directory and temporary ones
# prints: kept kept [] True
# needs: namespaces
# core: yes
import os
import tempfile

with open("note.txt", "w") as file:
    file.write("kept")
with open("note.txt") as file:
    first = file.read()
os.remove("note.txt")
with tempfile.TemporaryDirectory() as directory, open(f"{directory}/a", "w+") as file:
    file.write("kept")
    file.seek(0)
    second = file.read()
print(first, second, os.listdir("."), not os.path.exists(directory))
