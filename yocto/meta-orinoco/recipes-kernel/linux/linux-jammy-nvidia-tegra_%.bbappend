FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

SRC_URI += "file://orinoco.cfg"
