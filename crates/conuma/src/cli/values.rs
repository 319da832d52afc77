//! The forms of values on the command line.

use std::time::Duration;

use conuma_topology::{Bytes, NodeId};

/// Memory of one node, written `node1=256M` or `1=256M`, or of whichever nodes, written `256M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAmount {
    /// The node; `None` for whichever fit best.
    pub node: Option<NodeId>,
    /// How much.
    pub amount: Bytes,
}

/// Reads `node1=256M` or `256M`.
pub fn parse_node_amount(text: &str) -> Result<NodeAmount, String> {
    let bytes = |amount: &str| amount.parse::<Bytes>().map_err(|e| e.to_string());
    let Some((node, amount)) = text.split_once('=') else {
        return Ok(NodeAmount { node: None, amount: bytes(text)? });
    };
    let number = node.trim().strip_prefix("node").unwrap_or(node.trim());
    let node =
        number.parse().map(NodeId).map_err(|_| format!("`{node}` is not a node (expected the form `node1=256M`)"))?;
    Ok(NodeAmount { node: Some(node), amount: bytes(amount)? })
}

/// Reads `500ms`, `10s`, `2m`, `1h`, `7d`, or `10` for seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time (expected the form `500ms`, `10s` or `2m`)");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds_per_unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let amount: f64 = digits.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(amount * seconds_per_unit).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_amounts_are_read_with_and_without_the_word() {
        let amount = |text| parse_node_amount(text).map(|a| (a.node.map(|node| node.0), a.amount));
        assert_eq!(amount("node1=256M"), Ok((Some(1), Bytes::mib(256))));
        assert_eq!(amount("12=1.5G"), Ok((Some(12), Bytes::mib(1536))));
        assert_eq!(amount("256M"), Ok((None, Bytes::mib(256))));
        for wrong in ["lots", "nodex=1G", "node=1G", "node1=", "node1=lots"] {
            assert!(parse_node_amount(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        for wrong in ["", "s", "-1s", "10 parsecs", "1e30h", "nan"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
