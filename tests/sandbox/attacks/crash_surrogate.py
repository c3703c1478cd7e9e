# family: crash
# tries: text that is no Unicode
# status: error
# source: "print('\ud800won')\n'\udfff'"
