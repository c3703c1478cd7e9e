# family: crash
# tries: null bytes in the middle of the text
# status: error
# source: "print('won')\0"
