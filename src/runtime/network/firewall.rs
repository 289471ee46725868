//! The nftables table of our own, always written whole in one transaction, and the one rule that a packet filter with
//! a dropping FORWARD policy (dockerd's) needs besides.

use std::io::Write;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{Attachment, NetworkError};

/// Replaces the table by what these connections need.
pub(super) fn write(
    name: &str,
    subnet: Ipv4Net,
    all: &[(String, Attachment)],
) -> Result<(), NetworkError> {
    run(&script(name, subnet, all))
}

/// Removes the table and the rule; absent is done.
pub(super) fn remove(name: &str) -> Result<(), NetworkError> {
    run(&format!("table ip {name} {{}}\ndelete table ip {name}\n"))?;
    let mut deletions = String::new();
    for (chain, rules) in foreign_chains()? {
        for handle in ours(&rules, name) {
            deletions.push_str(&format!("delete rule ip filter {chain} handle {handle}\n"));
        }
    }
    if deletions.is_empty() {
        Ok(())
    } else {
        run(&deletions)
    }
}

/// Whether the table is there.
pub(super) fn present(name: &str) -> Result<bool, NetworkError> {
    let list = list(&["list", "tables", "ip"])?;
    let is_ours = |item: &Value| item["table"]["name"] == *name;
    Ok(list.iter().any(is_ours))
}

/// The whole table. Forwarding is one look-up in a map, whatever the number of ports.
fn script(name: &str, subnet: Ipv4Net, all: &[(String, Attachment)]) -> String {
    let ports: Vec<String> = all
        .iter()
        .flat_map(|(_, a)| {
            a.ports
                .iter()
                .map(|(host, inside)| format!("{host} : {} . {inside}", a.address))
        })
        .collect();
    let elements = if ports.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", ports.join(", "))
    };
    format!(
        "table ip {name} {{}}
delete table ip {name}
table ip {name} {{
  map ports {{ type inet_service : ipv4_addr . inet_service; {elements} }}
  chain prerouting {{
    type nat hook prerouting priority -100;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain output {{
    type nat hook output priority -100;
    fib daddr type local dnat ip to tcp dport map @ports
  }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    ip saddr {subnet} oifname != \"{name}\" masquerade
    ip saddr 127.0.0.0/8 oifname \"{name}\" masquerade
    ip saddr {subnet} oifname \"{name}\" ct status dnat masquerade
  }}
  chain forward {{
    type filter hook forward priority 0;
    iifname \"{name}\" accept
    oifname \"{name}\" accept
  }}
}}
"
    )
}

/// Accepts our traffic in a chain of `ip filter` whose policy or rules would drop it: a verdict of our own table does
/// not override another's.
pub(super) fn open_forward(name: &str) -> Result<(), NetworkError> {
    let chains = foreign_chains()?;
    let Some((chain, rules)) = chains
        .iter()
        .find(|(chain, _)| chain == "DOCKER-USER")
        .or_else(|| chains.first())
    else {
        return Ok(());
    };
    if !ours(rules, name).is_empty() {
        return Ok(());
    }
    let rule = |side: &str| {
        format!(
            "insert rule ip filter {chain} {side} \"{name}\" counter accept comment \"{}\"\n",
            comment(name)
        )
    };
    run(&(rule("iifname") + &rule("oifname")))
}

fn comment(name: &str) -> String {
    format!("backendai-agent {name}")
}

/// The chains in which a rule of ours may be needed: FORWARD with a dropping policy, and Docker's own hook in it.
fn foreign_chains() -> Result<Vec<(String, Vec<Value>)>, NetworkError> {
    let tables = list(&["list", "tables", "ip"])?;
    if !tables.iter().any(|item| item["table"]["name"] == "filter") {
        return Ok(Vec::new());
    }
    let all = list(&["list", "table", "ip", "filter"])?;
    let is_candidate = |chain: &Value| {
        (chain["name"] == "FORWARD" && chain["policy"] == "drop") || chain["name"] == "DOCKER-USER"
    };
    let chains = all
        .iter()
        .map(|item| &item["chain"])
        .filter(|chain| is_candidate(chain));
    Ok(chains
        .filter_map(|chain| chain["name"].as_str())
        .map(|chain| {
            let rules = all
                .iter()
                .map(|item| &item["rule"])
                .filter(|rule| rule["chain"] == *chain);
            (chain.to_owned(), rules.cloned().collect())
        })
        .collect())
}

/// Handles of our rules among these.
fn ours(rules: &[Value], name: &str) -> Vec<u64> {
    let is_ours = |rule: &&Value| rule["comment"] == *comment(name);
    rules
        .iter()
        .filter(is_ours)
        .filter_map(|rule| rule["handle"].as_u64())
        .collect()
}

fn list(args: &[&str]) -> Result<Vec<Value>, NetworkError> {
    let output = Command::new("nft")
        .arg("-ja")
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| NetworkError::Firewall(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(&output.stderr));
    }
    let mut value: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| NetworkError::Firewall(e.to_string()))?;
    match value["nftables"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(NetworkError::Firewall("nft gave no list".into())),
    }
}

/// Runs a script as one transaction.
fn run(script: &str) -> Result<(), NetworkError> {
    let refused = |error: std::io::Error| NetworkError::Firewall(error.to_string());
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(refused)?;
    let mut input = child.stdin.take().expect("piped above");
    // A program that has ended already says why below.
    let _ = input.write_all(script.as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(refused)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(&output.stderr))
    }
}

fn failed(stderr: &[u8]) -> NetworkError {
    let text = String::from_utf8_lossy(stderr);
    NetworkError::Firewall(text.lines().next().unwrap_or("nft failed").to_owned())
}
