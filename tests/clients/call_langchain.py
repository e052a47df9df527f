"""Embed documents by LangChain, which sends up to 1,000 at once; runs in the clients' environment.

Arguments: the URL, a key. Writes what came back as JSON.
"""

import json
import sys

from langchain_openai import OpenAIEmbeddings

# One word: the fake encoder takes its time for each.
DOCUMENT = "so-good-and-rather-long-as-documents-go-" * 68


def main(url: str, key: str) -> None:
    embeddings = OpenAIEmbeddings(
        model="test-space", base_url=f"{url}/v1", api_key=key, check_embedding_ctx_length=False
    )
    documents = embeddings.embed_documents([DOCUMENT] * 1_500)
    query = embeddings.embed_query(DOCUMENT)
    sys.stdout.write(
        json.dumps({"documents": len(documents), "length": len(DOCUMENT), "same": query == documents[-1]})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
