SUMMARY = "Orinoco's publisher of signed model updates"
DESCRIPTION = "Makes and signs releases of models for a fleet of Orinoco boards. It runs where the keys are, which is never a board: `bitbake orinoco-ota-native`."
SECTION = "devel"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

require orinoco.inc

inherit cargo_bin

ORINOCO_CARGO_TARGETS = "--package orinoco-ota --bin orinoco-ota"

do_install() {
    install -D -m 0755 ${CARGO_BINDIR}/orinoco-ota ${D}${bindir}/orinoco-ota
}

BBCLASSEXTEND = "native"
