SUMMARY = "Read-only root with Orinoco and Mosquitto, data on its own partition"
DESCRIPTION = "Nobody can log in to it: what a site wants for that (an SSH server with its keys, a user) it adds with EXTRA_IMAGE_FEATURES and IMAGE_INSTALL:append."
SECTION = "images"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

inherit core-image

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_LINGUAS = ""
IMAGE_INSTALL = "\
    packagegroup-core-boot \
    packagegroup-orinoco \
    packagegroup-orinoco-appliance \
    packagegroup-orinoco-tools \
    ${CORE_IMAGE_EXTRA_INSTALL} \
"

# What RAUC writes to a slot.
IMAGE_FSTYPES += "ext4"

ORINOCO_DATA_DEVICE ?= "/dev/disk/by-partlabel/UDA"

# makefs: a blank partition is formatted on the first boot, one with anything on it never. growfs: the file system is
# as large as its partition. nofail: a board without its data starts all the same, and can say so.
ORINOCO_DATA_OPTIONS = "noatime,nodev,nosuid,noexec,nofail,x-systemd.device-timeout=30s,x-systemd.makefs,x-systemd.growfs"
orinoco_data_partition() {
    echo "${ORINOCO_DATA_DEVICE} /data ext4 ${ORINOCO_DATA_OPTIONS} 0 2" >> ${IMAGE_ROOTFS}${sysconfdir}/fstab
}
ROOTFS_POSTPROCESS_COMMAND += "orinoco_data_partition"

COMPATIBLE_MACHINE = "(tegra234)"
