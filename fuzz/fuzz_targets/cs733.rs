#![no_main]

#[path = "../../tests/hostile/targets.rs"]
#[expect(dead_code, reason = "each target uses one")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::cs733(bytes);
});
