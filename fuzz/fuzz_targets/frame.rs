#![no_main]

#[path = "../../tests/hostile/targets.rs"]
#[expect(dead_code, reason = "each target uses one")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    targets::frame(bytes);
    if let Some(frame) = with_checksums(bytes) {
        targets::frame(&frame);
    }
});

/// A frame of these bytes: what it says of itself, then its header and its body, both as long as it says.
fn with_checksums(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = bytes.split_at_checked(24)?;
    let length = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (header, rest) = rest.split_at_checked(length(16))?;
    let (body, _) = rest.split_at_checked(length(20))?;
    let sums = [crc32c::crc32c_append(crc32c::crc32c(head), header), crc32c::crc32c(body)];
    Some([head, &sums[0].to_le_bytes(), &sums[1].to_le_bytes(), header, body].concat())
}
