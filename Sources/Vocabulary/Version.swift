public enum Version {
    /// Of this build; `codex-lb --version`.
    public static let text = "0.1.0"
}
