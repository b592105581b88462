// Signatures: HMAC-SHA256 of a text under a secret, in hexadecimal digits.

/** @param {string} secret */
function importKey(secret) {
	return crypto.subtle.importKey("raw", encode(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
}

/**
 * @param {string} secret
 * @param {string} text
 */
export async function signature(secret, text) {
	const bytes = await crypto.subtle.sign("HMAC", await importKey(secret), encode(text));
	return [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Takes the same time for every wrong signature of the right length.
 * @param {string} secret
 * @param {string} text
 * @param {string} signed
 */
export async function verify(secret, text, signed) {
	if (!secret || !/^[0-9a-f]{64}$/.test(signed)) {
		return false;
	}
	const bytes = Uint8Array.from(/** @type {string[]} */ (signed.match(/../g)), (digits) => Number.parseInt(digits, 16));
	return crypto.subtle.verify("HMAC", await importKey(secret), bytes, encode(text));
}

/** @param {string} text */
function encode(text) {
	return new TextEncoder().encode(text);
}
