"""What row-SFT is compared with: one method a file, each with its class as METHOD, behind the protocol
of `rowsft.methods.base`."""
