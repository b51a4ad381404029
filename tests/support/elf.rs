//! Writes small ELF programs that need libraries, for what reads their headers. They cannot be run.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test uses its own part of this module"
)]

/// A program from lines of text: `machine aarch64`, `needed libc.so.6`, `runpath $ORIGIN`. Text with other
/// words gives a file that is no program.
pub fn program(recipe: &str) -> Vec<u8> {
    let mut machine = 0_u16;
    // The first name is the empty one.
    let mut names = vec![0_u8];
    let mut dynamic: Vec<(u64, u64)> = Vec::new();
    for line in recipe.lines() {
        match line.split_once(' ') {
            Some(("machine", "aarch64")) => machine = 183,
            Some(("machine", "x86_64")) => machine = 62,
            Some((tag @ ("needed" | "runpath"), name)) => {
                let tag = if tag == "needed" { 1 } else { 29 };
                dynamic.push((tag, names.len() as u64));
                names.extend(name.as_bytes());
                names.push(0);
            }
            _ => return recipe.as_bytes().to_vec(),
        }
    }
    const HEADERS: u64 = 64 + 2 * 56;
    // Addresses are not offsets, as in real programs.
    const ADDRESS: u64 = 0x40_0000;
    let n_dynamic = dynamic.len() as u64 + 3;
    let names_at = HEADERS + n_dynamic * 16;
    dynamic.extend([(5, ADDRESS + names_at), (10, names.len() as u64), (0, 0)]);
    let size = names_at + names.len() as u64;

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut put = |bytes: &[u8]| file.extend(bytes);
    put(&3_u16.to_le_bytes());
    put(&machine.to_le_bytes());
    put(&1_u32.to_le_bytes());
    // Entry, program headers, section headers.
    [0, 64, 0_u64].iter().for_each(|n| put(&n.to_le_bytes()));
    put(&0_u32.to_le_bytes());
    // Sizes of this header and of a program header, number of those; no sections.
    [64, 56, 2, 64, 0, 0_u16]
        .iter()
        .for_each(|n| put(&n.to_le_bytes()));
    let mut segment = |kind: u32, at: u64, size: u64| {
        put(&kind.to_le_bytes());
        put(&4_u32.to_le_bytes());
        let numbers = [at, ADDRESS + at, ADDRESS + at, size, size, 8];
        numbers.iter().for_each(|n| put(&n.to_le_bytes()));
    };
    segment(1, 0, size);
    segment(2, HEADERS, n_dynamic * 16);
    for (tag, value) in dynamic {
        put(&tag.to_le_bytes());
        put(&value.to_le_bytes());
    }
    put(&names);
    file
}
