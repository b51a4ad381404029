SUMMARY = "RAUC for a board with Orinoco: two root file systems on L4T's boot chains"
DESCRIPTION = "A backend between RAUC and nvbootctrl, and the rule that an updated system is good once Orinoco is ready."
HOMEPAGE = "https://github.com/orinoco-edge/orinoco"
BUGTRACKER = "https://github.com/orinoco-edge/orinoco/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "\
    file://boot-complete.conf \
    file://mark-good.conf \
    file://orinoco-bootchain \
    file://orinoco-rauc-tmpfiles.conf \
    file://verifier.conf \
"

S = "${WORKDIR}"

inherit features_check
REQUIRED_DISTRO_FEATURES = "rauc systemd"

do_install() {
    install -D -m 0755 ${S}/orinoco-bootchain ${D}${libexecdir}/orinoco-bootchain
    install -D -m 0644 ${S}/boot-complete.conf ${D}${systemd_system_unitdir}/boot-complete.target.d/50-orinoco.conf
    install -D -m 0644 ${S}/mark-good.conf ${D}${systemd_system_unitdir}/rauc-mark-good.service.d/50-orinoco.conf
    install -D -m 0644 ${S}/verifier.conf ${D}${systemd_system_unitdir}/nv_update_verifier.service.d/50-orinoco.conf
    install -D -m 0644 ${S}/orinoco-rauc-tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/orinoco-rauc.conf
}

FILES:${PN} += "\
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir} \
"

RDEPENDS:${PN} = "orinoco rauc rauc-conf rauc-mark-good tegra-redundant-boot"
