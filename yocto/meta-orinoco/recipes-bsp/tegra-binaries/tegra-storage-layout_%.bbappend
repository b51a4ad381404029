# NVIDIA's layouts give the user's data 400 MiB; models want gigabytes.
FILESEXTRAPATHS:prepend := "${THISDIR}/${PN}:"

SRC_URI += "file://set-data-size"

ORINOCO_DATA_BYTES ?= "34359738368"

do_install:append() {
    sh ${WORKDIR}/set-data-size "${ORINOCO_DATA_BYTES}" ${D}${datadir}/tegraflash/*-flash.xml
}
