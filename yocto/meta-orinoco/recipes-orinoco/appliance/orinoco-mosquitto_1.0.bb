SUMMARY = "Mosquitto as the broker of Orinoco, with an account for the daemon"
DESCRIPTION = "Tells the daemon to use Mosquitto on the same board, and makes its account on the first boot."
HOMEPAGE = "https://github.com/orinoco-edge/orinoco"
BUGTRACKER = "https://github.com/orinoco-edge/orinoco/issues"
SECTION = "net"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "\
    file://50-mosquitto.toml \
    file://orinoco-mosquitto-account \
    file://orinoco-mosquitto-account.service \
    file://orinoco-mosquitto-tmpfiles.conf \
"

S = "${WORKDIR}"

inherit systemd features_check
REQUIRED_DISTRO_FEATURES = "systemd"

do_install() {
    install -D -m 0644 ${S}/50-mosquitto.toml ${D}${sysconfdir}/orinoco/config.d/50-mosquitto.toml
    install -D -m 0755 ${S}/orinoco-mosquitto-account ${D}${libexecdir}/orinoco-mosquitto-account
    install -D -m 0644 ${S}/orinoco-mosquitto-account.service ${D}${systemd_system_unitdir}/orinoco-mosquitto-account.service
    install -D -m 0644 ${S}/orinoco-mosquitto-tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/orinoco-mosquitto.conf
}

SYSTEMD_SERVICE:${PN} = "orinoco-mosquitto-account.service"

FILES:${PN} += "\
    ${nonarch_libdir}/tmpfiles.d \
    ${sysconfdir}/orinoco \
"

CONFFILES:${PN} = "${sysconfdir}/orinoco/config.d/50-mosquitto.toml"

RDEPENDS:${PN} = "mosquitto orinoco"
# Both say what the broker is.
RCONFLICTS:${PN} = "orinoco-broker"
