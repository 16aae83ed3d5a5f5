"""What row-SFT is compared with: one method a file, each with its class as METHOD, behind the protocol
of `rowsft.methods.base`.

May import methods, importance and selection. Must not import anything that runs or records.
"""
