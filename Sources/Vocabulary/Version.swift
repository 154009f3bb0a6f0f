public enum Version {
    /// Of this build; `codex-lb --version`.
    public static let text = "0.1.0"
    /// Of the Codex CLI that ChatGPT takes us for when it lists models: it hides those that an older one can't use.
    public static let codexClient = "0.163.0"
}
