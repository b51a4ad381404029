SUMMARY = "Orinoco on a board: the daemon, a broker, and what an operator needs there"
SUMMARY:${PN}-appliance = "A board that runs Orinoco and nothing else"
SUMMARY:${PN}-tools = "What tells why it does not"
DESCRIPTION = "${SUMMARY}."
SECTION = "net"

PACKAGE_ARCH = "${MACHINE_ARCH}"

inherit packagegroup

PACKAGES = "${PN} ${PN}-appliance ${PN}-tools"

RDEPENDS:${PN} = "\
    nv-tegra-release \
    orinoco \
    orinoco-doc \
    orinoco-mosquitto \
    orinoco-usb \
    tegra-nvpmodel \
"

RDEPENDS:${PN}-appliance = "\
    orinoco-appliance \
    tegra-redundant-boot \
"
# nooelint: oelint.vars.dependsordered
RDEPENDS:${PN}-appliance += "${@bb.utils.contains('DISTRO_FEATURES', 'rauc', 'orinoco-rauc', '', d)}"
# nooelint: oelint.vars.dependsordered
RDEPENDS:${PN}-appliance += "${@'zram' if d.getVar('ORINOCO_ZRAM_PERCENT') != '0' else ''}"

RDEPENDS:${PN}-tools = "\
    mosquitto-clients \
    tegra-tools-tegrastats \
"
