SUMMARY = "A board for Orinoco alone: data partition, journal, watchdog, zram"
DESCRIPTION = "Mounts what must survive on the data partition of an image with a read-only root, and bounds what the journal takes."
HOMEPAGE = "https://github.com/orinoco-edge/orinoco"
BUGTRACKER = "https://github.com/orinoco-edge/orinoco/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "\
    file://orinoco-data \
    file://orinoco-data.service \
    file://bind.mount.in \
    file://overlay.mount.in \
    file://journald.conf \
    file://watchdog.conf.in \
    file://zram.in \
"

S = "${WORKDIR}"

inherit systemd features_check
REQUIRED_DISTRO_FEATURES = "systemd"

# mount_unit TEMPLATE PATH: a mount of PATH, wanted before anything else runs. A unit's name has "/" as "-" and "-" as
# "\x2d".
mount_unit() {
    name=$(printf '%s' "$2" | sed -e 's,^/,,' -e 's,-,\\x2d,g' -e 's,/,-,g').mount
    sed -e "s,@PATH@,$2,g" "${S}/$1.mount.in" > "${D}${systemd_system_unitdir}/$name"
    chmod 0644 "${D}${systemd_system_unitdir}/$name"
    ln -s "../$name" "${D}${systemd_system_unitdir}/local-fs.target.wants/$name"
}

do_install() {
    install -D -m 0755 ${S}/orinoco-data ${D}${libexecdir}/orinoco-data
    install -d ${D}${systemd_system_unitdir}/local-fs.target.wants
    sed -e 's,@LIBEXECDIR@,${libexecdir},' ${S}/orinoco-data.service \
        > ${D}${systemd_system_unitdir}/orinoco-data.service
    chmod 0644 ${D}${systemd_system_unitdir}/orinoco-data.service
    # State. Models are written once and read whole: a bind mount, no overlay.
    for path in orinoco orinoco-broker mosquitto nvpmodel; do
        mount_unit bind ${localstatedir}/lib/$path
    done
    # What is written on the board (credentials, accounts, what differs here), over what the image brings, so that an
    # update of the image brings its own configuration and keeps the board's.
    for path in orinoco mosquitto; do
        mount_unit overlay ${sysconfdir}/$path
    done
    # Where the mounts go that cannot be made on a read-only root.
    install -d ${D}/data ${D}${sysconfdir}/orinoco ${D}${sysconfdir}/mosquitto

    install -D -m 0644 ${S}/journald.conf ${D}${nonarch_libdir}/systemd/journald.conf.d/50-orinoco.conf
    install -d ${D}${nonarch_libdir}/systemd/system.conf.d ${D}${sysconfdir}/default
    sed -e 's,@SECONDS@,${ORINOCO_WATCHDOG_SECONDS},' ${S}/watchdog.conf.in \
        > ${D}${nonarch_libdir}/systemd/system.conf.d/50-orinoco.conf
    sed -e 's,@PERCENT@,${ORINOCO_ZRAM_PERCENT},' ${S}/zram.in > ${D}${sysconfdir}/default/zram
    chmod 0644 ${D}${nonarch_libdir}/systemd/system.conf.d/50-orinoco.conf ${D}${sysconfdir}/default/zram
}

ORINOCO_WATCHDOG_SECONDS ?= "60"
ORINOCO_ZRAM_PERCENT ?= "25"

SYSTEMD_SERVICE:${PN} = "orinoco-data.service"

FILES:${PN} += "\
    /data \
    ${sysconfdir}/mosquitto \
    ${sysconfdir}/orinoco \
    ${systemd_system_unitdir} \
    ${nonarch_libdir}/systemd \
"

CONFFILES:${PN} = "${sysconfdir}/default/zram"

# The data partition is formatted on the first boot, and checked on each.
RDEPENDS:${PN} = "e2fsprogs-e2fsck e2fsprogs-mke2fs e2fsprogs-resize2fs"
RRECOMMENDS:${PN} = "nv-kernel-module-watchdog-tegra-t18x"
