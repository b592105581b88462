// Takes and serves images. An image is a key, its path, with the bytes as its value;
// what a browser is told about it is the key's metadata.

/**
 * @typedef {{ IMAGES: KVNamespace, UPLOAD_TOKEN: string }} Env
 * @typedef {{ type: string, etag: string, bytes: number }} About
 */

const MAX_BYTES = 10 * 1024 * 1024; // of an image; KV would take 25 MiB
const MAX_LISTED = 100; // images of a page of a listing
const CACHE_SECONDS = 60; // how long an image that was replaced may still be seen

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const url = new URL(request.url);
		const name = url.pathname.slice(1);
		const reads = request.method === "GET" || request.method === "HEAD";
		if (reads && name !== "") {
			return show(request, env.IMAGES, name);
		}
		if (!(await authorized(request, env.UPLOAD_TOKEN))) {
			return Response.json({ error: "not for you" }, { status: 401, headers: { "WWW-Authenticate": "Bearer" } });
		}
		if (reads) {
			return list(env.IMAGES, url.searchParams.get("cursor"));
		}
		if (!/^[\w-][\w.-]{0,99}(\/[\w-][\w.-]{0,99}){0,3}$/.test(name)) {
			return Response.json({ error: "want a name such as cats/tom.png" }, { status: 400 });
		}
		switch (request.method) {
			case "PUT":
				return save(request, env.IMAGES, name);
			case "DELETE":
				await env.IMAGES.delete(name);
				return new Response(null, { status: 204 });
		}
		return Response.json({ error: "not allowed here" }, { status: 405 });
	},
};

/**
 * @param {Request} request
 * @param {KVNamespace} images
 * @param {string} name
 */
async function show(request, images, name) {
	const { value, metadata } = await images.getWithMetadata(name, { type: "stream", cacheTtl: CACHE_SECONDS });
	if (value === null) {
		return new Response("There is no such image.\n", { status: 404 });
	}
	const { type, etag, bytes } = /** @type {About} */ (metadata);
	const headers = {
		ETag: etag,
		"Cache-Control": `public, max-age=${CACHE_SECONDS}`,
		"Content-Security-Policy": "default-src 'none'; sandbox", // it is a picture and nothing else
		"X-Content-Type-Options": "nosniff",
	};
	if (matches(request.headers.get("If-None-Match"), etag)) {
		await value.cancel();
		return new Response(null, { status: 304, headers });
	}
	if (request.method === "HEAD") {
		await value.cancel();
		return new Response(null, { headers: { ...headers, "Content-Type": type, "Content-Length": String(bytes) } });
	}
	const { readable, writable } = new FixedLengthStream(bytes); // so that the length is told
	value.pipeTo(writable).catch((error) => console.error(`${name}: ${error}`)); // the browser went away
	return new Response(readable, { headers: { ...headers, "Content-Type": type } });
}

/**
 * Does a header If-None-Match name an ETag?
 * @param {string | null} header
 * @param {string} etag
 */
function matches(header, etag) {
	return (header ?? "").split(",").some((tag) => ["*", etag, `W/${etag}`].includes(tag.trim()));
}

/**
 * @param {Request} request
 * @param {KVNamespace} images
 * @param {string} name
 */
async function save(request, images, name) {
	const image = await read(request, MAX_BYTES);
	if (image === null) {
		return Response.json({ error: `an image has at most ${MAX_BYTES} bytes` }, { status: 413 });
	}
	const type = typeOf(image);
	if (type === null) {
		return Response.json({ error: "want a PNG, JPEG, GIF or WebP" }, { status: 415 });
	}
	const digest = await crypto.subtle.digest("SHA-256", image);
	/** @type {About} */
	const about = { type, etag: `"${hex(digest)}"`, bytes: image.length };
	await images.put(name, image, { metadata: about });
	return Response.json({ name, ...about }, { status: 201, headers: { ETag: about.etag } });
}

/**
 * The body of a request, or null if it is too long. Not every request tells its
 * length, so no more is kept than is allowed.
 * @param {Request} request
 * @param {number} max
 */
async function read(request, max) {
	/** @type {Uint8Array[]} */
	const parts = [];
	let size = 0;
	for await (const part of request.body ?? []) {
		size += part.length;
		if (size > max) {
			return null;
		}
		parts.push(part);
	}
	const whole = new Uint8Array(size);
	let at = 0;
	for (const part of parts) {
		whole.set(part, at);
		at += part.length;
	}
	return whole;
}

/**
 * What the bytes are, whatever the sender says. SVG is missing on purpose: it can
 * hold scripts.
 * @param {Uint8Array} image
 */
function typeOf(image) {
	const start = String.fromCharCode(...image.subarray(0, 12));
	switch (true) {
		case start.startsWith("\x89PNG\r\n\x1a\n"):
			return "image/png";
		case start.startsWith("\xff\xd8\xff"):
			return "image/jpeg";
		case /^GIF8[79]a/.test(start):
			return "image/gif";
		case /^RIFF....WEBP/s.test(start):
			return "image/webp";
	}
	return null;
}

/**
 * @param {KVNamespace} images
 * @param {string | null} cursor
 */
async function list(images, cursor) {
	const page = await images.list({ cursor, limit: MAX_LISTED });
	return Response.json({
		images: page.keys.map(({ name, metadata }) => ({ name, .../** @type {About} */ (metadata) })),
		cursor: page.list_complete ? null : page.cursor,
	});
}

/**
 * Compares digests, which takes the same time whatever was guessed.
 * @param {Request} request
 * @param {string} token
 */
async function authorized(request, token) {
	const [a, b] = await Promise.all(
		[request.headers.get("Authorization") ?? "", `Bearer ${token}`].map((text) =>
			crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)),
		),
	);
	return Boolean(token) && crypto.subtle.timingSafeEqual(a, b);
}

/** @param {ArrayBuffer} bytes */
function hex(bytes) {
	return [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
