"""The words of texts that may tell what the texts are about. Pure functions.

Owns the function words of the languages that are written most, for example "the", "der" and "les". A text loses those
of its own language only: "die" is one in German, and says something in English.
"""

import re
from collections.abc import Iterable
from typing import Final

_READ: Final = 2_000
_WORD: Final = re.compile(r"\w\w+")
# Japanese and Chinese have no spaces. Katakana and Chinese characters carry the meaning, hiragana the grammar.
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff々]+")
_WITHIN: Final = re.compile(r"[\u30a1-\u30fa\u30fc]{2,}|[\u3400-\u4dbf\u4e00-\u9fff々]{2,}")
_LONGEST_RUN: Final = 4

# Parts of contractions too, as the words are split at apostrophes.
_FUNCTION_WORDS: Final = {
    language: frozenset(words.split())
    for language, words in {
        "ar": """
            أن أنا أنت أو إلى إن ال التي الذي الى ان انا او بعد به بها بين تم ثم جدا حتى حيث ذلك على علي عليه عن عند
            في فيه فيها قبل قد كان كانت كل كما كنت لا لقد لكن لم لن له لها لي ليس ما مع من منذ منه منها نحن هذا هذه
            هل هم هنا هناك هو هي ولا ولكن ولم وهو وهي يا يتم يكون
        """,
        "da": """
            af at bare da de den der deres det dette dig din dog du efter eller en end er et for fra få før ham han
            hans har havde hende her hun hvad hvis hvor ikke ind jeg jo kan kun kunne lidt man med meget men mig min
            mit mod må ned når og også om op os over på selv sig sin skal skulle som så til ud var ved vi vil ville
            være været
        """,
        "de": """
            aber alle allem allen aller alles als also am an auch auf aus bei beim bin bis bist da dabei damit dann
            das dass dein dem den denn der des dich die dies diese diesem diesen dieser dieses dir doch dort du
            durch ein eine einem einen einer eines einfach er es etwas euch euer für gegen gibt hab habe haben hat
            hatte hatten hier hinter ich ihm ihn ihnen ihr ihre ihrem ihren ihrer im in ins ist ja jede jedem jeden
            jeder jedes jetzt kann kein keine keinen keiner können könnte mal man mehr mein meine meinem meinen
            meiner mich mir mit muss nach nicht nichts noch nun nur ob oder ohne schon sehr sein seine seinem seinen
            seiner seit selbst sich sie sind so solche soll sondern sonst um und uns unser unsere unter viel vom von
            vor war waren warum was wegen weil weiter welche wenn wer werde werden wie wieder will wir wird wo wurde
            wurden während würde zu zum zur zwar zwischen über
        """,
        "en": """
            about above after again against ain all also always am an and any are aren as at be because been before
            being below between both but by can cannot could couldn did didn do does doesn doing don down during
            each even ever every few for from further get gets getting go going got had hadn has hasn have haven
            having he her here hers herself him himself his how however if im in into is isn it its itself ive just
            ll me more most much must mustn my myself neither no nor not now of off on once only or other our ours
            ourselves out over own quite rather re really same she should shouldn since so some still such than that
            the their theirs them themselves then there these they this those though through to too under until up
            upon us ve very was wasn we were weren what when where which while who whom why will with without won
            would wouldn yet you your yours yourself yourselves
        """,
        "es": """
            al algo algunas algunos ante antes así aunque aún bien cada casi como con contra cual cuando cómo de del
            desde donde dos durante el ella ellas ellos en entre era eran eres es esa esas ese eso esos esta estaba
            estado estamos estar estas este esto estos estoy está están fue fueron ha hace hacer hacía han has hasta
            hay he la las le les lo los me mi mis mucha mucho muchos muy más mí nada ni no nos nosotros nuestra
            nuestro os otra otro para pero poco por porque pues que quien qué se sea ser si sido sin sobre solo son
            soy su sus sí sólo también tan tanto te tener tengo ti tiene tienen toda todas todo todos tras tu tus
            tuve tuvo tú un una unas uno unos va vez voy ya yo él
        """,
        "fr": """
            ai ainsi alors après as au aucun aussi autre aux avaient avais avait avant avec avez avoir avons car ce
            ceci cela celle celui ces cet cette chez comme dans de depuis des deux donc dont du elle elles en encore
            entre es est et eu faire fait fois fut il ils je jusque la le les leur leurs lors lui là ma mais me mes
            moi moins mon même ne ni nos notre nous on ont ou où par parce pas pendant peu peut plus plusieurs pour
            pourquoi qu quand que quel quelle qui quoi sa sans se sera ses si soit son sont sous suis sur ta te tes
            toi ton toujours tous tout toute toutes trop très tu un une va vos votre vous vraiment étaient étais
            était été être
        """,
        "it": """
            ai al alla alle allo anche ancora avere aveva avevo che chi ci come con cosa così cui da dai dal dalla
            dalle degli dei del della delle dello di dopo dove due era erano essere fa fatto fino fra già gli ha hai
            hanno ho il in io la le lei li lo loro lui ma me mentre mi mia mie miei mio molta molto ne nei nel nella
            nelle nessun niente noi non nostra nostro ogni per perché però più poco poi prima proprio qua quale
            quando quanto quella quelle quelli quello questa queste questi questo qui quindi sa se sei sempre senza
            si sia siamo sono sta stata stati stato su sua subito sue sugli sui sul sulla suo suoi te ti tra tu tua
            tuo tutta tutte tutti tutto un una uno vi voi
        """,
        "nl": """
            aan al alle alleen als altijd andere ben bij daar dan dat de der deze die dit doch doen door dus een en
            er erg ga ge geen gewoon had hadden heb hebben heeft heel hem het hier hij hoe hun iets ik in is ja je
            jij jullie kan kon kunnen maar me meer men met mij mijn moet na naar niet niets nog nu of om omdat onder
            ons onze ook op over reeds sinds te tegen toch toen tot tussen uit uw van vanaf veel voor waar waren was
            wat we weer wel werd wezen wie wij wil worden wordt zal ze zeer zelf zich zij zijn zo zonder zou
        """,
        "pl": """
            aby ale ani bardzo bez bo by być był była było były chce ci co coś czy dla dlaczego dlatego do gdy gdzie
            go ich ile im inne ja jak jako je jednak jego jej jest jestem jeszcze jeśli jeżeli już każdy kiedy kto
            która które który ma mam mi mnie moje może mój na nad nam nas nasz nawet nic nich nie niego niej nim niż
            no od on ona one oraz po pod ponieważ poza przecież przed przez przy sam się są ta tak taki tam te tego
            tej ten teraz też to tu tutaj tych tylko tym wam was we wiele więc wszystko właśnie za zawsze ze że żeby
        """,
        "pt": """
            ainda ao aos apenas aquela aquele as assim até com como da das de dela dele depois desde do dos ela elas
            ele eles em entre era eram essa esse esta estava estou está estão eu faz foi foram fui há isso isto já
            lhe mais mas me mesmo meu meus minha minhas muita muito na nada nas nem no nos nossa nosso num numa não
            nós os ou para pela pelo por porque pra qual quando que quem se seja sem sempre ser seu seus sido sim
            sobre sou sua suas são só também te tem tenho ter teve tinha tive toda todas todo todos tudo tão um uma
            uns vai você vocês vou às
        """,
        "ru": """
            без более бы был была были было быть вам вас ведь весь во вот все всего всех всё вы где да даже для до
            его ее если есть еще ещё её же за здесь из или им их как когда кто ли лишь меня мне много мой моя мы на
            над надо нам нас не него нее нет ни них но ну об он она они оно от очень по под после потом потому при
            про раз сам своей себя со совсем так также такой там те тем то того тоже той только том тут ты уже чего
            чем что чтобы эта эти это этого этой этом этот
        """,
        "sv": """
            alla allt att av bara blev bli blir de dem den denna deras det detta dig din du där då efter eller en er
            ett från får för ha hade han hans har hela henne hon honom hur här in inga inte jag kan kunde lite man
            med mellan men mer mig min mitt mot mycket ni nu när någon något några och också om oss på sedan sig sin
            själv ska skulle som så till under upp ut utan vad var vara varför vi vid vilken vill än är även åt över
        """,
        "tr": """
            ama artık aslında az bana bazı belki ben beni benim bile bir biraz biz bizim bu buna bunu bunun da daha
            de defa değil diye en et fakat gibi hem henüz hep hepsi her hiç ile ise için kadar ki kim mi mu mü mı
            nasıl ne neden nerede niye olan olarak oldu olduğu ona onlar onu onun oysa sanki sen seni siz sonra tam
            tüm var ve veya ya yani yok çok çünkü şey şu
        """,
    }.items()
}


def content_words(text: str) -> set[str]:
    """Return the words of a text's first 2,000 characters, without the function words of its language.

    In texts without spaces a word is a run of Katakana or of Chinese characters, or two neighbours in a long run.
    """
    start = text[:_READ].lower()
    words = _WORD.findall(_UNSPACED.sub(" ", start))
    function_words = _function_words(words)
    content = {word for word in words if word not in function_words}
    for run in _UNSPACED.findall(start):
        for found in _WITHIN.findall(run):
            content.update(_split(found))
    return content


def _split(run: str) -> Iterable[str]:
    if len(run) <= _LONGEST_RUN or _is_katakana(run[0]):
        return (run,)
    return (run[place : place + 2] for place in range(len(run) - 1))


def _is_katakana(letter: str) -> bool:
    return "\u30a0" <= letter <= "\u30ff"


def _function_words(words: list[str]) -> frozenset[str]:
    """Return the function words of the language that has the most among these words; of several, if they tie."""
    counts = {language: sum(word in known for word in words) for language, known in _FUNCTION_WORDS.items()}
    most = max(counts.values())
    if most == 0:
        return frozenset()
    return frozenset().union(
        *(_FUNCTION_WORDS[language] for language, count in counts.items() if count == most)
    )
