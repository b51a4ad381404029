# The keyring is the fleet's own: RAUC_KEYRING_FILE and RAUC_KEYRING_URI, see the layer's README.
FILESEXTRAPATHS:prepend := "${THISDIR}/files:"

RAUC_COMPATIBLE ?= "orinoco-${MACHINE}"

do_install:append() {
    sed -i -e 's,@COMPATIBLE@,${RAUC_COMPATIBLE},' -e 's,@KEYRING@,${RAUC_KEYRING_FILE},' \
        -e 's,@LIBEXECDIR@,${libexecdir},' ${D}${sysconfdir}/rauc/system.conf
}

PACKAGE_ARCH = "${MACHINE_ARCH}"
