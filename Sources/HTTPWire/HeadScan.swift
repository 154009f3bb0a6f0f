import Bytes
internal import Vocabulary

/// What request and response heads have in common: their end, their fields, what the fields say about the body.
struct HeadScan {
    /// The status of every error of this message.
    var status: Int

    func fault(_ reason: String) -> WireError { WireError(status, reason) }

    /// The offset behind the blank line; nil if it hasn't come. Looks at no byte twice: `scanned` says how far it came.
    /// Every LF on the way must follow a CR.
    func end(_ bytes: RawSpan, from start: Int, scanned: inout Int, bytesMax: Int) throws(WireError) -> Int? {
        let limit = min(bytes.byteCount, start + bytesMax + 1)
        var i = max(scanned, start)
        while let lf = bytes.lineFeed(from: i, to: limit) {
            guard lf > start, bytes[lf - 1] == 0x0D else { throw fault("line ends with LF alone") }
            if lf - 1 == start { throw fault("empty first line") }
            if lf - start >= 3, bytes[lf - 2] == 0x0A {
                if lf + 1 - start > bytesMax { break }
                scanned = 0
                return lf + 1
            }
            i = lf + 1
        }
        if bytes.byteCount - start > bytesMax { throw WireError(status == 400 ? 431 : status, "head larger than \(bytesMax) bytes") }
        scanned = bytes.byteCount
        return nil
    }

    /// The field lines in `start ..< end`, the blank line included. Ranges are made relative to `origin`.
    func fields(_ bytes: RawSpan, _ start: Int, _ end: Int, origin: Int) throws(WireError) -> [HeaderFields.Field] {
        var lines = 0
        var at = start
        while let lf = bytes.lineFeed(from: at, to: end) { (lines, at) = (lines + 1, lf + 1) }
        // The last is the blank line.
        guard lines - 1 <= Limits.headerFieldsMax else {
            throw WireError(status == 400 ? 431 : status, "more than \(Limits.headerFieldsMax) header fields")
        }
        var found: [HeaderFields.Field] = []
        found.reserveCapacity(lines - 1)
        var i = start
        while i < end - 2 {
            let nameStart = i
            while isTokenByte(bytes[i]) { i += 1 }
            let nameEnd = i
            // Of a response it is mended (RFC 9112 §5.1), of a request never: two readers could take it for two things.
            if status == 502, i > nameStart { while bytes[i] == 0x20 || bytes[i] == 0x09 { i += 1 } }
            guard bytes[i] == UInt8(ascii: ":"), i > nameStart else {
                if bytes[nameStart] == 0x20 || bytes[nameStart] == 0x09 { throw fault("folded header line") }
                if i > nameStart, bytes[i] == 0x20 || bytes[i] == 0x09 { throw fault("space in header name or before its colon") }
                throw fault("invalid header name")
            }
            i += 1
            while bytes[i] == 0x20 || bytes[i] == 0x09 { i += 1 }
            let valueStart = i
            while isValueByte(bytes[i]) { i += 1 }
            guard bytes[i] == 0x0D, bytes[i + 1] == 0x0A else { throw fault("control character in header value") }
            let value = bytes.trimmed(valueStart..<i)
            let known = KnownHeader.named(bytes, nameStart..<nameEnd)
            found.append(
                HeaderFields.Field(
                    known, name: nameStart - origin..<nameEnd - origin, value: value.lowerBound - origin..<value.upperBound - origin))
            i += 2
        }
        return found
    }

    /// RFC 9112 §6.3 with no leniency: one `Content-Length` or one `Transfer-Encoding: chunked`, never both. Nil: neither.
    func framing(_ fields: HeaderFields, minorVersion: Int) throws(WireError) -> BodyFraming? {
        var (length, encoding): (Range<Int>?, Range<Int>?) = (nil, nil)
        for field in fields.fields {
            if field.known == .contentLength {
                guard length == nil else { throw fault("more than one Content-Length") }
                length = field.value
            } else if field.known == .transferEncoding {
                guard encoding == nil else { throw fault("more than one Transfer-Encoding") }
                encoding = field.value
            }
        }
        let bytes = fields.bytes.span.bytes
        if let encoding {
            guard length == nil else { throw fault("Content-Length beside Transfer-Encoding") }
            guard minorVersion >= 1 else { throw fault("Transfer-Encoding in HTTP/1.0") }
            guard bytes.equalsIgnoringCase(encoding, "chunked") else { throw fault("Transfer-Encoding other than chunked") }
            return .chunked
        }
        guard let length else { return nil }
        guard !length.isEmpty else { throw fault("Content-Length isn't a number") }
        var number = 0
        for i in length {
            let c = bytes[i]
            guard c >= 0x30 && c <= 0x39 else { throw fault("Content-Length isn't a number") }
            let (tens, over) = number.multipliedReportingOverflow(by: 10)
            let (sum, overToo) = tens.addingReportingOverflow(Int(c - 0x30))
            guard !over && !overToo else { throw fault("Content-Length too large") }
            number = sum
        }
        return .length(number)
    }

    static func keepsAlive(_ fields: HeaderFields, minorVersion: Int) -> Bool {
        if fields.hasToken(.connection, "close") { return false }
        return minorVersion >= 1 || fields.hasToken(.connection, "keep-alive")
    }
}
