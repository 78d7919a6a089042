#![no_main]

#[path = "../../tests/hostile/checksums.rs"]
#[expect(dead_code, reason = "each target uses one")]
mod checksums;
#[path = "../../tests/hostile/targets.rs"]
#[expect(dead_code, reason = "each target uses one")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::segment(bytes);
    targets::segment(&checksums::segment_with_checksums(bytes.to_vec()));
});
