//! Server-sent events: the text form of an event stream (WHATWG HTML, "Server-sent events").

/// A frame: one event of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// The kind; empty if the stream does not say.
    pub event: String,
    /// The payload; its lines joined by newlines.
    pub data: String,
}

/// A frame grew beyond what a reader keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of more than {MAX_FRAME} bytes")]
pub struct FrameTooLong;

/// Longest frame in bytes.
const MAX_FRAME: usize = 4 << 20;

/// Cuts a stream of bytes into frames; memory is bounded.
#[derive(Debug, Default)]
pub struct FrameReader {
    line: Vec<u8>,
    frame: Frame,
}

impl FrameReader {
    /// A reader at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream and hands back the frames that end in them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, FrameTooLong> {
        let mut frames = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.frame.data.len() > MAX_FRAME {
                return Err(FrameTooLong);
            }
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                frames.extend(self.take_line(text.trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(frames)
    }

    fn take_line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let mut frame = std::mem::take(&mut self.frame);
            frame.data.pop();
            // A frame without data is none: so are the pings that keep a connection alive.
            return (!frame.data.is_empty()).then_some(frame);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.frame.event),
            "data" => {
                self.frame.data.push_str(value);
                self.frame.data.push('\n');
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(chunks: &[&str]) -> Vec<(String, String)> {
        let mut reader = FrameReader::new();
        chunks
            .iter()
            .flat_map(|chunk| reader.push(chunk.as_bytes()).expect("short frames"))
            .map(|frame| (frame.event, frame.data))
            .collect()
    }

    fn pair(event: &str, data: &str) -> (String, String) {
        (event.into(), data.into())
    }

    #[test]
    fn frames_end_with_an_empty_line_wherever_chunks_are_cut() {
        let text = "event: a\ndata: {1}\nid: 7\n\n: ping\n\ndata:x\r\ndata: y\r\n\r\nevent: cut";
        let expected = vec![pair("a", "{1}"), pair("", "x\ny")];
        assert_eq!(frames(&[text]), expected);
        for at in 0..text.len() {
            let (before, after) = text.split_at(at);
            assert_eq!(frames(&[before, after]), expected, "cut at {at}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut reader = FrameReader::new();
        let chunk = [b'x'; 1 << 16];
        assert!((0..80).any(|_| reader.push(&chunk).is_err()));
    }
}
