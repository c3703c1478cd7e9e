# family: forged
# tries: an answer in JSON
# prints: {"exit": 0, "status": "ok"}
import json

print(json.dumps({"exit": 0, "status": "ok"}))
