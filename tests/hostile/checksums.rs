//! Checksums put right: mere noise never gets past one, and what lies behind would not be tried.

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

/// Where the records of a segment begin.
pub fn records(segment: &[u8]) -> Vec<usize> {
    (64..segment.len() - 64).step_by(64).filter(|at| &segment[*at..at + 4] == b"kREC").collect()
}

/// Put every checksum of a segment right, as far as its lengths allow.
pub fn segment_with_checksums(mut segment: Vec<u8>) -> Vec<u8> {
    if segment.len() < 128 {
        return segment;
    }
    let head = crc32c::crc32c(&segment[..60]).to_le_bytes();
    segment[60..64].copy_from_slice(&head);
    for at in records(&segment) {
        let (command, body) = (word(&segment, at + 44), word(&segment, at + 48));
        let table = 4 * body.div_ceil(16 << 10);
        let Some(bytes) = segment.get(at + 64 + table..).and_then(|rest| rest.get(..command)) else { continue };
        let sum = crc32c::crc32c(bytes).to_le_bytes();
        segment[at + 52..at + 56].copy_from_slice(&sum);
        let seed = [&segment[16..24], &segment[12..16], &(at as u32).to_le_bytes()].concat();
        let sum = crc32c::crc32c_append(crc32c::crc32c(&seed), &segment[at..at + 60]);
        let sum = crc32c::crc32c_append(sum, &segment[at + 64..at + 64 + table]).to_le_bytes();
        segment[at + 60..at + 64].copy_from_slice(&sum);
    }
    let end = segment.len() - 64;
    let sum = crc32c::crc32c_append(crc32c::crc32c(&segment[16..24]), &segment[end..end + 60]).to_le_bytes();
    segment[end + 60..].copy_from_slice(&sum);
    segment
}

/// The same for a snapshot.
pub fn snapshot_with_checksums(mut file: Vec<u8>) -> Vec<u8> {
    if file.len() < 64 {
        return file;
    }
    let head = crc32c::crc32c(&file[..60]).to_le_bytes();
    file[60..64].copy_from_slice(&head);
    let mut at = 64;
    while at + 20 < file.len() && word(&file, at) != u32::MAX as usize {
        let Some(item) = file.get(at + 8..).and_then(|rest| rest.get(..word(&file, at))) else { return file };
        let (sum, next) = (crc32c::crc32c(item).to_le_bytes(), at + 8 + item.len());
        file[at + 4..at + 8].copy_from_slice(&sum);
        at = next;
    }
    if at + 20 <= file.len() {
        let whole = crc32c::crc32c(&file[..at]).to_le_bytes();
        file[at + 16..at + 20].copy_from_slice(&whole);
        let sum = crc32c::crc32c(&file[at + 8..at + 20]).to_le_bytes();
        file[at + 4..at + 8].copy_from_slice(&sum);
    }
    file
}
