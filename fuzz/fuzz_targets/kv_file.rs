#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| orinoco_fuzz::entry::kv_file::check(data));
