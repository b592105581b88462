// A to-do list. The files of its page are in the namespace PAGE, under their names,
// so the page changes without a deploy. What is to be done is in ITEMS.
//
// Every item is a key of its own, LIST/ID: two people who change two items of one
// list never overwrite each other. What an item says is the metadata of its key, so
// one listing of the keys that begin with LIST/ shows the whole list.

/**
 * @typedef {{ PAGE: KVNamespace, ITEMS: KVNamespace }} Env
 * @typedef {{ text: string, done: boolean }} Item
 */

const MAX_METADATA_BYTES = 1024; // what KV keeps with a key
const MAX_ITEMS = 1000; // of a list that are shown: one page of a listing

/** @type {Record<string, string>} */
const TYPES = {
	html: "text/html; charset=utf-8",
	css: "text/css; charset=utf-8",
	js: "text/javascript; charset=utf-8",
};

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const { pathname } = new URL(request.url);
		if (pathname === "/") {
			// Who knows the name of a list may read and change it, so nobody can guess it.
			return redirect(`/lists/${crypto.randomUUID()}`);
		}
		const [, list, id] = pathname.match(/^\/api\/([0-9a-f-]{36})(?:\/([0-9a-z-]{1,40}))?$/) ?? [];
		if (list) {
			return api(request, env.ITEMS, list, id);
		}
		const file = /^\/lists\/[0-9a-f-]{36}$/.test(pathname) ? "index.html" : pathname.slice(1);
		return page(env.PAGE, file);
	},
};

/** @param {string} location */
function redirect(location) {
	return new Response(null, { status: 302, headers: { Location: location, "Cache-Control": "no-store" } });
}

/**
 * Sends a file of the page.
 * @param {KVNamespace} files
 * @param {string} file
 */
async function page(files, file) {
	const type = TYPES[file.slice(file.lastIndexOf(".") + 1)];
	const content = type && (await files.get(file, { type: "stream", cacheTtl: 60 }));
	if (!content) {
		return new Response("There is no such page.\n", { status: 404 });
	}
	return new Response(content, {
		headers: { "Content-Type": type, "Content-Security-Policy": "default-src 'self'", "Referrer-Policy": "no-referrer" },
	});
}

/**
 * Answers what the page asks about a list, or about an item of it.
 * @param {Request} request
 * @param {KVNamespace} items
 * @param {string} list
 * @param {string | undefined} id
 */
async function api(request, items, list, id) {
	switch (`${request.method} ${id ? "item" : "list"}`) {
		case "GET list":
			return Response.json(await all(items, list));
		case "POST list":
			// Names begin with the time, so that a listing shows the oldest item first.
			return write(request, items, list, `${Date.now().toString(36)}-${crypto.randomUUID().slice(0, 8)}`, 201);
		case "PUT item":
			return write(request, items, list, /** @type {string} */ (id), 200);
		case "DELETE item":
			await items.delete(`${list}/${id}`);
			return new Response(null, { status: 204 });
	}
	return new Response("Not allowed here.\n", { status: 405 });
}

/**
 * @param {KVNamespace} items
 * @param {string} list
 */
async function all(items, list) {
	const prefix = `${list}/`;
	const { keys } = await items.list({ prefix, limit: MAX_ITEMS });
	return keys.map(({ name, metadata }) => ({ id: name.slice(prefix.length), .../** @type {Item} */ (metadata) }));
}

/**
 * Writes the item that is the body of a request.
 * @param {Request} request
 * @param {KVNamespace} items
 * @param {string} list
 * @param {string} id
 * @param {number} status
 */
async function write(request, items, list, id, status) {
	const sent = await request.json().catch(() => null);
	const text = typeof sent?.text === "string" ? sent.text.trim() : "";
	if (text === "") {
		return new Response('Send {"text": "…", "done": false}.\n', { status: 400 });
	}
	/** @type {Item} */
	const item = { text, done: sent.done === true };
	if (new TextEncoder().encode(JSON.stringify(item)).length > MAX_METADATA_BYTES) {
		return new Response("That is too long.\n", { status: 413 });
	}
	await items.put(`${list}/${id}`, "", { metadata: item });
	return Response.json({ id, ...item }, { status });
}
