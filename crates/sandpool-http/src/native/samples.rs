//! What a session uses, second by second: as a list, or as a stream.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use sandpool_node::{SAMPLE_INTERVAL, Sample};
use serde_json::{Value, json};

use super::asked::Asked;
use super::events;
use super::shown::{instant, seconds};
use crate::app::App;
use crate::auth::Role;
use crate::problem::Problem;

/// The samples that are kept, and with `Accept: text/event-stream` those to come.
pub(super) async fn follow(State(app): State<App>, asked: Asked, headers: HeaderMap) -> Result<Response, Problem> {
    let (pool, key) = asked.session(Role::Reader)?;
    let after = events::after(&asked, &headers)?;
    let reader = app.node.samples(&pool, &key).await?;
    if events::is_wanted(&headers) {
        return Ok(events::told("sample", reader.after(after), |sample| (sample.sequence, shown(sample))));
    }
    let kept = reader.kept().await;
    let samples: Vec<_> = kept.iter().filter(|sample| sample.sequence > after).map(shown).collect();
    Ok(Json(json!({ "interval": SAMPLE_INTERVAL.as_secs(), "samples": samples })).into_response())
}

fn shown(Sample { sequence, time, usage }: &Sample) -> Value {
    json!({
        "sequence": sequence,
        "time": instant(*time),
        "cpuSeconds": usage.cpu_us.map(seconds),
        "throttledSeconds": usage.throttled_us.map(seconds),
        "memoryBytes": usage.memory,
        "memoryPeakBytes": usage.memory_peak,
        "memoryPressure": usage.memory_pressure.map(|share| f64::from(share) / 10_000.0),
        "oomKills": usage.oom_kills,
        "readBytes": usage.read,
        "writtenBytes": usage.written,
        "processes": usage.pids,
        "egressSentBytes": usage.sent,
        "egressReceivedBytes": usage.received,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;
    use http_body_util::BodyExt;
    use sandpool_core::ids::SandboxId;

    use super::*;
    use crate::served::Served;

    const SESSION: &str = "/pools/python/sessions/chat-17";
    const SAMPLES: &str = "/pools/python/sessions/chat-17/samples";

    async fn opened(served: &Served) -> SandboxId {
        let made = served.call("PUT", SESSION, "{}").await.json();
        SandboxId::parse(made["sandbox"].as_str().unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_session_uses_is_told_second_by_second_and_null_is_what_nobody_knows() {
        let served = Served::start().await;
        assert_eq!(served.call("GET", SAMPLES, "").await.status, 404, "there is no session yet");
        let sandbox = opened(&served).await;
        served.memory.using(sandbox, |usage| {
            (usage.throttled_us, usage.memory_pressure, usage.sent) = (Some(1_500_000), Some(1_234), Some(7));
        });
        let first = served.call("GET", SAMPLES, "").await.json();
        let [one] = &first["samples"].as_array().unwrap()[..] else { panic!("{first}") };
        assert_eq!((&first["interval"], &one["throttledSeconds"]), (&json!(1), &json!(1.5)));
        assert_eq!((&one["memoryPressure"], &one["egressSentBytes"]), (&json!(0.1234), &json!(7)));
        assert_eq!(
            (&one["egressReceivedBytes"], &one["readBytes"], &one["oomKills"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        served.memory.use_cpu(sandbox, Duration::from_secs(2));
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let later = served.call("GET", SAMPLES, "").await.json();
        let later = later["samples"].as_array().unwrap();
        assert_eq!((later.len(), &later[0], &later[2]["cpuSeconds"]), (3, one, &json!(2.0)));
        let after = served.call("GET", &format!("{SAMPLES}?after={}", later[1]["sequence"]), "").await.json();
        assert_eq!(after["samples"], json!([later[2]]));
        // A minute after the last reader nothing is taken any more, and a later one begins anew, with later numbers.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let anew = served.call("GET", SAMPLES, "").await.json();
        let [one] = &anew["samples"].as_array().unwrap()[..] else { panic!("{anew}") };
        assert!(one["sequence"].as_u64() > later[2]["sequence"].as_u64(), "{anew}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_goes_on_where_it_broke_off_and_ends_with_its_session() {
        let served = Served::start().await;
        opened(&served).await;
        let mut stream = served.stream("GET", SAMPLES, ("x-none", ""), "").await.into_body().into_data_stream();
        let mut text = String::new();
        while text.matches("event: sample").count() < 3 {
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
        let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect();
        let again = served.stream("GET", SAMPLES, ("last-event-id", &ids[1]), "").await;
        assert_eq!(served.call("DELETE", SESSION, "").await.status, 204);
        let rest = again.into_body().collect().await.unwrap().to_bytes();
        let rest = std::str::from_utf8(&rest).unwrap();
        assert!(rest.contains(&format!("id: {}\n", ids[2])) && !rest.contains(&format!("id: {}\n", ids[1])), "{rest}");
        while let Some(more) = stream.next().await {
            more.unwrap();
        }
    }
}
