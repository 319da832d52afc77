//! Against a scripted peer: what a real QEMU does not do on demand (late, strange and broken answers). The conformance
//! suite talks to a real one.

use super::*;
use tokio::net::UnixListener;

const BUDGET: Duration = Duration::from_secs(20);

/// A peer that greets, then answers each command with the lines that `script` gives for it.
async fn connect(script: impl Fn(&str, u64) -> Vec<String> + Send + 'static) -> (tempfile::TempDir, Qmp) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let greeting = r#"{"QMP":{"version":{"qemu":{"major":10,"minor":0,"micro":2}},"capabilities":["oob"]}}"#;
        writer.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
        let mut reader = BufReader::new(reader);
        while let Ok(line) = next_line(&mut reader).await {
            let command: Value = serde_json::from_str(&line).unwrap();
            let id = command["id"].as_u64().unwrap();
            let lines = match command["execute"].as_str().unwrap() {
                "qmp_capabilities" => vec![json!({"return": {}, "id": id}).to_string()],
                name => script(name, id),
            };
            if lines.is_empty() && command["execute"] == "quit" {
                return;
            }
            for line in lines {
                writer.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            }
        }
    });
    let qmp = Qmp::connect(&path, BUDGET).await.unwrap();
    (dir, qmp)
}

#[tokio::test]
async fn unknown_events_and_noise_do_not_end_the_connection() {
    let (_dir, qmp) = connect(|_, id| {
        vec![
            "not json".into(),
            r#"{"event":"OF_THE_FUTURE","data":{"x":1}}"#.into(),
            json!({"return": 7, "id": id}).to_string(),
        ]
    })
    .await;
    let mut events = qmp.events();
    assert_eq!(qmp.call("ask", json!({}), BUDGET).await.unwrap(), 7);
    assert_eq!(events.recv().await.unwrap(), QmpEvent { name: "OF_THE_FUTURE".into(), data: json!({"x": 1}) });
    assert_eq!(qmp.version(), Some((10, 0, 2)));
}

#[tokio::test]
async fn a_late_answer_goes_to_nobody() {
    let (_dir, qmp) = connect(|name, id| match name {
        "slow" => vec![],
        _ => vec![json!({"return": "late", "id": id - 1}).to_string(), json!({"return": "mine", "id": id}).to_string()],
    })
    .await;
    let slow = qmp.call("slow", json!({}), Duration::from_millis(20)).await;
    assert!(matches!(slow, Err(QmpError::TimedOut { .. })), "{slow:?}");
    assert_eq!(qmp.call("ask", json!({}), BUDGET).await.unwrap(), "mine");
}

#[tokio::test]
async fn a_refusal_carries_qemus_words() {
    let (_dir, qmp) = connect(|_, id| {
        vec![json!({"error": {"class": "GenericError", "desc": "no such thing"}, "id": id}).to_string()]
    })
    .await;
    let error = qmp.call("qom-get", json!({}), BUDGET).await.unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused `qom-get`: no such thing (GenericError)");
}

#[tokio::test]
async fn qemus_end_is_noticed_by_those_who_wait() {
    let (_dir, qmp) = connect(|_, _| vec![]).await;
    let error = qmp.call("quit", json!({}), BUDGET).await.unwrap_err();
    assert!(matches!(error, QmpError::Closed { .. }), "{error}");
    qmp.closed().await;
}
