// Stands before a site that is written in English and puts the reader's language into
// its pages. A language is a key, such as de or de-ch, whose value has the texts by
// their names: {"title": "Neuigkeiten"}. The pages say where a text belongs:
//
//     <h1 data-text="title">News</h1>
//     <input data-text-placeholder="search" placeholder="Search">
//
// What has no translation stays as the site wrote it.

/**
 * @typedef {{ TEXTS: KVNamespace }} Env
 * @typedef {Record<string, string>} Texts
 */

const ORIGINAL = "en"; // the language of the site
const ATTRIBUTES = ["alt", "placeholder", "title"]; // that may be translated: none that a browser runs or follows
const MAX_LANGUAGES = 10; // of a reader that are looked for
const CACHE_SECONDS = 60;

export default {
	/**
	 * @param {Request} request
	 * @param {Env} env
	 */
	async fetch(request, env) {
		const response = await fetch(unconditional(request));
		if (!response.headers.get("Content-Type")?.startsWith("text/html")) {
			return response;
		}
		const { language, texts } = await translation(env.TEXTS, request.headers.get("Accept-Language") ?? "");
		const page = new Response(response.body, response);
		page.headers.set("Content-Language", language);
		page.headers.append("Vary", "Accept-Language");
		// They tell when the original changed, and nothing of translations.
		page.headers.delete("ETag");
		page.headers.delete("Last-Modified");
		return language === ORIGINAL ? page : translate(page, language, texts);
	},
};

/**
 * The request for a whole page: a part of the original is of no use, and that it did
 * not change says nothing of its translation.
 * @param {Request} request
 */
function unconditional(request) {
	const headers = new Headers(request.headers);
	for (const name of ["If-None-Match", "If-Modified-Since", "If-Range", "Range"]) {
		headers.delete(name);
	}
	return new Request(request, { headers, redirect: "manual" });
}

/**
 * The first language of the reader that there is, with what the language around it
 * has to add: de-ch has the few words that are not as in de.
 * @param {KVNamespace} namespace
 * @param {string} accepted
 * @returns {Promise<{ language: string, texts: Texts }>}
 */
async function translation(namespace, accepted) {
	const wanted = languages(accepted);
	const tags = [...new Set(wanted.flatMap((tag) => [tag, tag.split("-")[0]]))].filter((tag) => tag !== ORIGINAL);
	if (tags.length > 0) {
		try {
			const found = /** @type {Map<string, Texts | null>} */ (
				await namespace.get(tags, { type: "json", cacheTtl: CACHE_SECONDS })
			);
			for (const tag of wanted) {
				const [base] = tag.split("-");
				if (base === ORIGINAL) {
					break;
				}
				const texts = found.get(tag);
				const around = found.get(base);
				if (texts || around) {
					return { language: texts ? tag : base, texts: { ...around, ...texts } };
				}
			}
		} catch (error) {
			// Rather English than nothing.
			console.error(`no translation to ${tags}: ${error}`);
		}
	}
	return { language: ORIGINAL, texts: {} };
}

/**
 * The languages of an Accept-Language header, the dearest first: of
 * "fr;q=0.5, de-CH, *;q=0.1" they are de-ch and fr.
 * @param {string} header
 */
function languages(header) {
	return header
		.toLowerCase()
		.split(",")
		.flatMap((part) => {
			const [, tag, quality = "1"] = part.match(/^\s*([a-z]{2,3}(?:-[a-z0-9]{2,8})*)\s*(?:;\s*q=([\d.]+))?\s*$/) ?? [];
			return tag && Number(quality) > 0 ? [{ tag, quality: Number(quality) }] : [];
		})
		.sort((a, b) => b.quality - a.quality) // those of one quality stay in their order
		.slice(0, MAX_LANGUAGES)
		.map(({ tag }) => tag);
}

/**
 * @param {Response} page
 * @param {string} language
 * @param {Texts} texts
 */
function translate(page, language, texts) {
	/** @param {string | null} name */
	const text = (name) => (name !== null && Object.hasOwn(texts, name) ? texts[name] : null);
	const rewriter = new HTMLRewriter()
		.on("html", { element: (element) => void element.setAttribute("lang", language) })
		.on("[data-text]", {
			element(element) {
				const translated = text(element.getAttribute("data-text"));
				if (translated !== null) {
					element.setInnerContent(translated); // as text: no translation adds markup
				}
			},
		});
	for (const attribute of ATTRIBUTES) {
		rewriter.on(`[data-text-${attribute}]`, {
			element(element) {
				const translated = text(element.getAttribute(`data-text-${attribute}`));
				if (translated !== null) {
					element.setAttribute(attribute, translated);
				}
			},
		});
	}
	return rewriter.transform(page);
}
