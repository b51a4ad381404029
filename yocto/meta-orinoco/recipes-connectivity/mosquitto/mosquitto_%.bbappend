# Mosquitto with Orinoco's configuration and access rules, as scripts/test.sh tests them: the files of the repository.
FILESEXTRAPATHS:prepend := "${THISDIR}/files:${ORINOCO_TREE}/configs/mosquitto:"

SRC_URI += "\
    file://mosquitto.conf \
    file://orinoco.acl \
    file://orinoco.conf \
"

do_install:append() {
    install -m 0644 ${WORKDIR}/mosquitto.conf ${D}${sysconfdir}/mosquitto/mosquitto.conf
    install -D -m 0644 ${WORKDIR}/orinoco.conf ${D}${sysconfdir}/mosquitto/conf.d/orinoco.conf
    # Mosquitto warns of access rules that others may read.
    install -m 0640 ${WORKDIR}/orinoco.acl ${D}${sysconfdir}/mosquitto/orinoco.acl
    chown root:mosquitto ${D}${sysconfdir}/mosquitto/orinoco.acl
}

CONFFILES:${PN} += "\
    ${sysconfdir}/mosquitto/conf.d/orinoco.conf \
    ${sysconfdir}/mosquitto/orinoco.acl \
"
