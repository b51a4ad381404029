//! Compiles `src/llama/shim.cpp` against the very llama.cpp sources that llama-cpp-sys-2 compiled.
//!
//! `llama-ext.h` is not installed beside `llama.h`, so the source tree is needed. llama-cpp-sys-2
//! does not export it, but it exports the folder of its CMake package (`DEP_LLAMA_GGML_CMAKE_DIR`,
//! inside its OUT_DIR), and CMake's cache there names the source tree. That holds for a crate from
//! the registry, a vendored one, and a git or path dependency alike; `ORINOCO_LLAMA_CPP_DIR` wins.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/llama/shim.cpp");
    println!("cargo:rerun-if-env-changed=ORINOCO_LLAMA_CPP_DIR");
    let source = llama_cpp_source();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("src/llama/shim.cpp")
        .include(source.join("src"))
        .include(source.join("include"))
        .include(source.join("ggml/include"))
        .compile("orinoco_llama_shim");
}

fn llama_cpp_source() -> PathBuf {
    let candidate = env::var_os("ORINOCO_LLAMA_CPP_DIR")
        .map(PathBuf::from)
        .or_else(|| {
            let package = env::var_os("DEP_LLAMA_GGML_CMAKE_DIR")?;
            home_of_cmake_cache(Path::new(&package))
        });
    match candidate {
        Some(source) if source.join("src/llama-ext.h").is_file() => source,
        found => panic!(
            "llama.cpp's sources were not found (looked for src/llama-ext.h in {found:?}); \
             set ORINOCO_LLAMA_CPP_DIR to the llama.cpp folder of llama-cpp-sys-2"
        ),
    }
}

/// `CMAKE_HOME_DIRECTORY` of the build whose OUT_DIR contains `package` (`OUT_DIR/lib/cmake`).
fn home_of_cmake_cache(package: &Path) -> Option<PathBuf> {
    let out_dir = package.parent()?.parent()?;
    let cache = fs::read_to_string(out_dir.join("build/CMakeCache.txt")).ok()?;
    cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .map(PathBuf::from)
}
