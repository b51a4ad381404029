SUMMARY = "orinoco-image as a signed update for RAUC"
DESCRIPTION = "Needs RAUC_KEY_FILE and RAUC_CERT_FILE; see the layer's README."
HOMEPAGE = "https://github.com/orinoco-edge/orinoco"
SECTION = "images"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# A bundle is made of images: nothing is fetched.
SRC_URI = ""

inherit bundle

RAUC_COMPATIBLE ?= "orinoco-${MACHINE}"
RAUC_BUNDLE_COMPATIBLE = "${RAUC_COMPATIBLE}"
RAUC_BUNDLE_FORMAT = "verity"
RAUC_BUNDLE_SLOTS = "rootfs"
RAUC_SLOT_rootfs = "orinoco-image"
RAUC_SLOT_rootfs[fstype] = "ext4"
RAUC_SLOT_rootfs[adaptive] = "block-hash-index"

COMPATIBLE_MACHINE = "(tegra234)"
