# family: contest
# tries: random numbers, which need entropy
# prints: True 5 32
import os
import random
import secrets
import uuid

print(0 <= random.random() < 1, len(os.urandom(5)), len(secrets.token_hex(16)))
assert uuid.uuid4() != uuid.uuid4()
