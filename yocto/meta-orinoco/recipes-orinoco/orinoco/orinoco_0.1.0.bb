SUMMARY = "Offline LLM appliance: prompts in over MQTT, streamed tokens out"
SUMMARY:${PN}-broker = "Orinoco's own MQTT broker as a service"
SUMMARY:${PN}-llama = "llama.cpp's libraries as Orinoco's worker needs them"
SUMMARY:${PN}-usb = "Orinoco takes updates from a USB stick labelled ORINOCO"
DESCRIPTION = "A daemon that answers LLM prompts over MQTT on a Jetson Orin, and its worker, which runs llama.cpp on the GPU in a sandboxed process of its own."
SECTION = "net"

require orinoco.inc
# llama.cpp, with all that is compiled into it, beside our own.
LICENSE = "Apache-2.0 & MIT"
LIC_FILES_CHKSUM = "\
    file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
    file://../cargo_home/bitbake/llama-cpp-sys-2-${LLAMA_CPP_SYS_VERSION}/llama.cpp/LICENSE;md5=223b26b3c1143120c87e2b13111d3e99 \
"

# The worker's build script reads llama.cpp's headers with bindgen, on the build host.
DEPENDS += "clang-native"

SRC_URI += "\
    file://50-unit.toml \
    file://config.toml \
"

# cmake comes before cargo_bin, whose configure, compile and install are to be the ones that run: of cmake it is the
# toolchain file that is wanted, which the cuda class extends.
inherit cmake cargo_bin systemd useradd pkgconfig cuda

COMPATIBLE_MACHINE = "(tegra234)"

# orinoco-engine: the 32 GiB reservation of CUDA's VMM pool fails on Orin, and libllama, libggml and libggml-cuda are
# libraries, linked with CUDA's own from the image in place of some hundred megabytes of static cuBLAS.
ORINOCO_CARGO_TARGETS = "--package orinoco --package orinoco-engine --bin orinoco --bin orinoco-engine"
CARGO_FEATURES = "orinoco-engine/cuda-no-vmm,orinoco-engine/dynamic-link"

export LIBCLANG_PATH = "${STAGING_LIBDIR_NATIVE}"
export BINDGEN_EXTRA_CLANG_ARGS = "--sysroot=${STAGING_DIR_TARGET} --target=${TARGET_SYS}"
# llama.cpp's build hands every CMAKE_ and GGML_ variable on to CMake.
export CMAKE_TOOLCHAIN_FILE = "${WORKDIR}/toolchain.cmake"
export CMAKE_CUDA_ARCHITECTURES = "${CUDA_ARCHITECTURES}"
export CMAKE_BUILD_PARALLEL_LEVEL = "${@oe.utils.parallel_make(d, False)}"
# The Cortex-A78AE: products of eight-bit integers, and arithmetic with half floats.
export GGML_CPU_ARM_ARCH = "armv8.2-a+dotprod+fp16"

CUDA_NVCC_EXTRA_FLAGS:append = " -Xcompiler -ffile-prefix-map=${WORKDIR}=${TARGET_DBGSRC_DIR}"

do_install() {
    install -D -m 0755 ${CARGO_BINDIR}/orinoco ${D}${bindir}/orinoco
    install -D -m 0755 ${CARGO_BINDIR}/orinoco-engine ${D}${bindir}/orinoco-engine

    # llama.cpp's libraries by their sonames, which the worker asks for; nothing else is linked with them. Where they
    # were missing, do_package_qa would say so of the worker (file-rdeps).
    install -d ${D}${libdir}
    for library in $(find ${CARGO_BINDIR}/build -type f -path '*/llama-cpp-sys-2-*/out/lib/lib*.so.*'); do
        oe_soinstall "$library" ${D}${libdir}
    done

    install -d ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/orinoco.service ${D}${systemd_system_unitdir}/
    install -m 0644 ${S}/systemd/orinoco-broker.service ${D}${systemd_system_unitdir}/
    install -m 0644 ${S}/systemd/orinoco-password.service ${D}${systemd_system_unitdir}/
    install -m 0644 ${S}/systemd/orinoco-usb.service ${S}/systemd/run-orinoco-usb.mount ${D}${systemd_system_unitdir}/
    install -D -m 0644 ${S}/systemd/orinoco-usb.rules ${D}${nonarch_base_libdir}/udev/rules.d/90-orinoco-usb.rules
    install -D -m 0644 ${S}/systemd/orinoco-sysusers.conf ${D}${nonarch_libdir}/sysusers.d/orinoco.conf
    install -D -m 0644 ${S}/systemd/orinoco-tmpfiles.conf ${D}${nonarch_libdir}/tmpfiles.d/orinoco.conf

    install -D -m 0644 ${WORKDIR}/config.toml ${D}${sysconfdir}/orinoco/config.toml
    install -D -m 0644 ${WORKDIR}/50-unit.toml ${D}${sysconfdir}/orinoco/config.d/50-unit.toml

    install -d ${D}${docdir}/orinoco
    install -m 0644 ${S}/README.md ${S}/CHANGELOG.md ${S}/LICENSE ${S}/configs/default.toml ${D}${docdir}/orinoco/
    install -m 0644 ${S}/docs/protocol.md ${S}/docs/doctor.md ${D}${docdir}/orinoco/
    install -D -m 0644 ${S}/docs/ota/fetch.md ${D}${docdir}/orinoco/ota/fetch.md
}

PACKAGE_BEFORE_PN = "${PN}-broker ${PN}-llama ${PN}-usb"

SYSTEMD_PACKAGES = "${PN} ${PN}-broker"
SYSTEMD_SERVICE:${PN} = "orinoco.service"
SYSTEMD_SERVICE:${PN}-broker = "orinoco-broker.service"

# Users with the image: its /etc is read-only when sysusers would make them.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "-r render; -r orinoco; -r orinoco-broker"
USERADD_PARAM:${PN} = "\
    -r -M -d ${localstatedir}/lib/orinoco -s ${base_sbindir}/nologin -g orinoco -G video,render orinoco; \
    -r -M -d ${localstatedir}/lib/orinoco-broker -s ${base_sbindir}/nologin -g orinoco-broker -G orinoco orinoco-broker \
"

FILES:${PN} += "\
    ${nonarch_libdir}/sysusers.d \
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir}/orinoco-password.service \
"
FILES:${PN}-usb += "\
    ${nonarch_base_libdir}/udev/rules.d \
    ${systemd_system_unitdir}/orinoco-usb.service \
    ${systemd_system_unitdir}/run-orinoco-usb.mount \
"
FILES:${PN}-broker += "${sysconfdir}/orinoco/config.d/50-unit.toml"
FILES:${PN}-llama += "${libdir}/lib*.so.*"

CONFFILES:${PN} = "${sysconfdir}/orinoco/config.toml"
CONFFILES:${PN}-broker += "${sysconfdir}/orinoco/config.d/50-unit.toml"

# What is found by its soname, package by package, do_package adds by itself.
RDEPENDS:${PN} += "${PN}-llama"
RDEPENDS:${PN}-broker = "${PN}"
RDEPENDS:${PN}-usb = "${PN}"
